// The Android layer: an AAR with the native library that `../native.sh` builds.
plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
    `maven-publish`
}

group = "dev.dollop"
version = "0.1.0"

android {
    namespace = "dev.dollop.android"
    compileSdk = 35

    defaultConfig {
        minSdk = 24
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
    sourceSets["main"].jniLibs.srcDir("../../target/android/jni")
    publishing { singleVariant("release") { withSourcesJar() } }
}

kotlin { explicitApi() }

dependencies {
    api(project(":core"))
    api(libs.coroutines.android)
}

publishing {
    publications {
        create<MavenPublication>("release") {
            artifactId = "dollop-android"
            afterEvaluate { from(components["release"]) }
        }
    }
}
