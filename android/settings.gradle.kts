// The build with Google's Android plugin: an AAR and the sample app. `./native.sh` first, which builds libdollop.so for the devices.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode.set(RepositoriesMode.FAIL_ON_PROJECT_REPOS)
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "dollop"
include(":core", ":library", ":sample")
